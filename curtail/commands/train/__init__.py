"""`curtail train`, `bench train`, `eval` and `sample`: work on one machine without a controller."""
