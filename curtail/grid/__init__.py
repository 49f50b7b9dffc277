"""The grid signal as values: a reading, a forecast, a recorded trace."""
