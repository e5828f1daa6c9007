"""Store to numbers and pictures: query, probes, persistence, report. Knows nothing of Ray."""
