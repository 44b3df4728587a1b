// Restores a picture with a bundle of a whole restoration, by ONNX Runtime's C API alone:
//
//     restore BUNDLE picture.ppm out.ppm [mask.pgm] [SEED | noise.bin]
//
// Pictures are PPM or PGM of 8 bits, of the graph's own size; in the mask white is missing. The
// graph holds the network, its steps, the operator and the correction: all that is left to do here
// is to fill its inputs. Its noise is drawn from a seed, or read from a file of 32-bit floats, to
// repeat what another program drew. Build it with ONNX Runtime's release (its folders include and lib):
//
//     g++ -std=c++17 -O2 restore.cpp -I ORT/include -L ORT/lib -lonnxruntime -Wl,-rpath,ORT/lib

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Picture {
  int64_t channels = 0, height = 0, width = 0;
  std::vector<float> pixels;  // (channels, height, width), from 0 to 1
};

[[noreturn]] void refuse(const std::string& why) { throw std::runtime_error(why); }

int64_t header_number(std::istream& file, const std::string& path) {
  while (std::isspace(file.peek())) file.get();
  while (file.peek() == '#') {  // a comment, to the end of its line
    std::string comment;
    std::getline(file, comment);
    while (std::isspace(file.peek())) file.get();
  }
  int64_t number = 0;
  if (!(file >> number) || number < 1 || number > 65535) refuse(path + ": damaged header");
  return number;
}

Picture read_picture(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) refuse(path + ": can't be read");
  std::string magic(2, ' ');
  file.read(magic.data(), 2);
  if (magic != "P6" && magic != "P5") refuse(path + ": not a binary PPM (P6) or PGM (P5)");
  Picture found;
  found.channels = magic == "P6" ? 3 : 1;
  found.width = header_number(file, path);
  found.height = header_number(file, path);
  if (header_number(file, path) != 255) refuse(path + ": not of 8 bits (white is not 255)");
  file.get();  // one blank
  const int64_t count = found.channels * found.height * found.width;
  if (count > (int64_t{1} << 28)) refuse(path + ": larger than 2^28 values");
  std::vector<unsigned char> bytes(count);
  file.read(reinterpret_cast<char*>(bytes.data()), count);
  if (file.gcount() != count) refuse(path + ": cut short");
  found.pixels.resize(count);
  const int64_t area = found.height * found.width;
  for (int64_t i = 0; i < area; ++i)
    for (int64_t c = 0; c < found.channels; ++c)
      found.pixels[c * area + i] = bytes[i * found.channels + c] / 255.0f;
  return found;
}

void write_picture(const std::string& path, const Picture& picture) {
  const int64_t area = picture.height * picture.width;
  std::string bytes(area * picture.channels, '\0');
  for (int64_t i = 0; i < area; ++i)
    for (int64_t c = 0; c < picture.channels; ++c) {
      const float value = picture.pixels[c * area + i];
      if (!std::isfinite(value)) refuse("the graph answered with NaN or infinite values");
      bytes[i * picture.channels + c] =
          static_cast<char>(std::lround(255 * std::clamp(value, 0.0f, 1.0f)));
    }
  std::ofstream file(path, std::ios::binary);
  file << (picture.channels == 3 ? "P6\n" : "P5\n") << picture.width << ' ' << picture.height
       << "\n255\n" << bytes;
  if (!file.flush()) refuse(path + ": can't be written");
}

// 1 where a pixel is known: white is missing.
std::vector<float> known_pixels(const Picture& mask) {
  const int64_t area = mask.height * mask.width;
  std::vector<float> known(area);
  for (int64_t i = 0; i < area; ++i) known[i] = mask.pixels[i] < 0.5f ? 1.0f : 0.0f;
  return known;
}

std::vector<float> noise_of(const std::string& source, int64_t count) {
  std::vector<float> noise(count);
  if (source.find_first_not_of("0123456789") == std::string::npos && source.size() < 19) {
    std::mt19937_64 generator(std::stoull(source));
    std::normal_distribution<float> normal;
    for (auto& value : noise) value = normal(generator);
    return noise;
  }
  std::ifstream file(source, std::ios::binary);
  file.read(reinterpret_cast<char*>(noise.data()), count * 4);
  if (file.gcount() != count * 4 || file.peek() != EOF)
    refuse(source + ": neither a seed nor a file of " + std::to_string(count) + " 32-bit floats");
  return noise;
}

std::string said(const std::vector<int64_t>& shape) {
  return std::to_string(shape[shape.size() - 1]) + " x " + std::to_string(shape[shape.size() - 2]);
}

void restore(int argc, char** argv) {
  if (argc < 4 || argc > 6)
    refuse("usage: restore BUNDLE picture.ppm out.ppm [mask.pgm] [SEED | noise.bin]");
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "restobox");
  env.DisableTelemetryEvents();
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  // the next level's layout pass costs more around integer kernels
  options.SetGraphOptimizationLevel(GraphOptimizationLevel::ORT_ENABLE_EXTENDED);
  Ort::Session session(env, (std::string(argv[1]) + "/restorer.onnx").c_str(), options);

  Picture picture = read_picture(argv[2]);
  std::vector<float> known;
  std::vector<std::string> names;
  std::vector<std::vector<int64_t>> shapes;
  std::vector<std::vector<float>> inputs;
  Ort::AllocatorWithDefaultOptions allocator;
  for (size_t k = 0; k < session.GetInputCount(); ++k) {
    names.emplace_back(session.GetInputNameAllocated(k, allocator).get());
    auto shape = session.GetInputTypeInfo(k).GetTensorTypeAndShapeInfo().GetShape();
    for (auto& n : shape)
      if (n < 1) n = 1;  // the batch
    int64_t count = 1;
    for (const auto n : shape) count *= n;
    std::vector<float> values;
    if (names[k] == "image") {
      if (shape[2] != picture.height || shape[3] != picture.width)
        refuse(std::string(argv[2]) + ": this graph restores pictures of " + said(shape));
      for (int64_t c = 0; c < shape[1]; ++c) {  // of grey pictures equal planes
        const auto plane = picture.pixels.begin() +
                           std::min(c, picture.channels - 1) * picture.height * picture.width;
        values.insert(values.end(), plane, plane + picture.height * picture.width);
      }
    } else if (names[k] == "mask") {
      if (argc < 5) refuse("this graph fills missing pixels: give a mask too");
      const Picture mask = read_picture(argv[4]);
      if (mask.height != picture.height || mask.width != picture.width)
        refuse(std::string(argv[4]) + ": not of the picture's size");
      values = known = known_pixels(mask);
    } else if (names[k] == "noise") {
      values = noise_of(argc > 5 ? argv[5] : "0", count);
    } else {
      refuse("this graph has the input " + names[k] + ", which this program doesn't know");
    }
    if (static_cast<int64_t>(values.size()) != count)
      refuse("the graph's input " + names[k] + " is not what this program fills");
    shapes.push_back(shape);
    inputs.push_back(std::move(values));
  }

  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<Ort::Value> tensors;
  std::vector<const char*> asked;
  for (size_t k = 0; k < names.size(); ++k) {
    tensors.push_back(Ort::Value::CreateTensor<float>(memory, inputs[k].data(), inputs[k].size(),
                                                      shapes[k].data(), shapes[k].size()));
    asked.push_back(names[k].c_str());
  }
  const char* output = "restored";
  const auto answer = session.Run(Ort::RunOptions{}, asked.data(), tensors.data(), tensors.size(),
                                  &output, 1);
  const auto shape = answer[0].GetTensorTypeAndShapeInfo().GetShape();
  const float* values = answer[0].GetTensorData<float>();
  Picture result{shape[1], shape[2], shape[3], {values, values + shape[1] * shape[2] * shape[3]}};
  if (!known.empty()) {  // what is known stays as it is
    const int64_t area = result.height * result.width;
    for (int64_t c = 0; c < result.channels; ++c)
      for (int64_t i = 0; i < area; ++i)
        if (known[i] > 0)
          result.pixels[c * area + i] =
              picture.pixels[std::min(c, picture.channels - 1) * area + i];
  }
  write_picture(argv[3], result);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    restore(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "restore: " << error.what() << '\n';
    return 2;
  }
}
