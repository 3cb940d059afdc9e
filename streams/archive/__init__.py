"""Ranges of the outbox as Parquet files, written before retention takes them away.

    store       a folder or bucket with parts of ranges: a manifest and two files each, checked
    parts       what a manifest says of a part, and what makes one believed
    write       rows of a range, as one snapshot sees them, into a part that is read back
    restore     a part's rows in tables of their own

Nothing here is imported by who does not archive: pyarrow and fsspec are in the extra `archive`.
"""
