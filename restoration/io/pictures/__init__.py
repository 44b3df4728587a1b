"""Picture files: how each container is decoded, what it says beside the pixels, folders of them."""
