"""The model, its optimizer, data and evaluation. Knows nothing of sites, HTTP or carbon. Importing it does nothing."""
