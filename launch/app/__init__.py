"""`medreport app`: the three systems on one local page."""
