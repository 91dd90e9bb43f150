"""Recording at the link: staging, link maps, ingestion."""
