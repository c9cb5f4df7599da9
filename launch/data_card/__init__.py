"""`medreport data show`: what a data set holds, as a page and as JSON."""
