"""The small program that puts runsc into its own powerless corner and becomes it.

Run as ``python -I -S -E launcher/`` with the standard library only, because it is started once per
sandbox and every import is paid in cold-start time. `torpor.runsc.spawn` starts it and speaks this
protocol with it, one JSON object per line::

    stdin   {"plan": "/dir/launch.json", "uid": int|null, "gid": int|null, "cgroups":
    ["/…/cgroup.procs"]} stdout  {"pid": int, "notes": [str]}        the sandbox's first process,
    not running yet stdin   go                                  end of file instead of it: leave
    without a trace stdout  (closed)                            runsc has taken over; or stdout
    {"error": {"step": str, "errno": int, "message": str}}

``launch.json`` is what `torpor.runsc.plan.launch_plan` gives.
"""
