"""Snapshots in an object store: anything that fsspec can address, compressed and, with a key, sealed.

Needs ``pip install torpor[stores]``, and for ``s3://`` and the like fsspec's package for it (s3fs).
What a daemon does with it::

    settings = RemoteSettings("s3://bucket/torpor", key_file="/etc/torpor/store.key", keep=3)
    store = open_store(settings)                   # both in settings.py; ConfigError says what to fix
    store.push(snapshot, cancelled=stop.is_set)    # in a thread; a second call resumes the first
    snapshots.drop(kernel_id, generation)          # only what was pushed for certain may be dropped
    store.fetch(kernel_id, generation, snapshots)  # as it was; restore from what this gives
    store.retain(settings.retention, protect={(kernel_id, generation)})

Everything is synchronous and safe from any thread and any number of machines. The key is what makes
a store trusted: without one, whoever can write to it can have a kernel restored from what they like.
"""
