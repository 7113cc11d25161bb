"""Maths that belongs to no paper."""
