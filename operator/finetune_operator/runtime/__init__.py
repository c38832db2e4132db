"""The running operator: watches, cache, work queue, workers, scraper."""
