"""What will happen? Forecasts from what was observed; nothing here decides or acts."""
