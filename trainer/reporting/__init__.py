"""The page that shows a run: `report.html`, one file without a network."""
