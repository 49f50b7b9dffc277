"""`curtail train`, `bench train`, `eval` and `sample`: one machine without a controller."""
