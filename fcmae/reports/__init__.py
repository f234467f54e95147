"""Reports of runs and ablations: report.html, report.md and report.csv, without any network."""
