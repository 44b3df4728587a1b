"""Ultrasound: tissue and haze."""
