"""The report of a sweep: what trial logs and records say, as one object and as one page."""
