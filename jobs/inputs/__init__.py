"""Lists and reads the images of an input: folders, buckets, tars, Parquet files, manifests."""
