"""Grid signals as values: readings, forecasts and recorded traces."""
