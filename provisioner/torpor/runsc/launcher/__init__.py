"""The small program that puts runsc into its own powerless corner and becomes it.

Run as ``python -I -S -E launcher/__main__.py ARGUMENTS`` with the standard library only, and little of that,
because it is started once per sandbox and every import is paid in cold-start time: hence `marshal`
and lines of text, not JSON, and types that only the type checker imports.

`torpor.runsc.spawn` starts it with arguments and speaks this protocol with it, in lines::

    PLAN-FILE UID GID                 UID and GID are - to keep the caller's own

    stdin   in{TAB}FILE...            enter the cgroups of these files (``tasks``); it is in all others:
                                      what it makes from now on is, too
    stdout  note TEXT                 something had to be done differently
    stdout  pid NUMBER                the sandbox's first process, not running yet
    stdout  ready                     only with ``first`` in the plan: that has been run
    stdin   go                        end of file instead of this or ``in``: leave without a trace
    stdout  (end of file)             runsc has taken over
    stdout  error STEP ERRNO TEXT     instead of any of the above: it is gone

``PLAN-FILE`` holds what `torpor.runsc.plan.launch_plan` gives, marshalled by the same Python. Where it
has a command line ``first`` (``runsc create``), the launcher runs that at once and does not become ``argv``
but runs it, too (``runsc restore --detach``), and stays as the parent of what they leave. With ``restore``
(sandbox id, folder) besides it asks the sandbox itself to be restored (``control``) instead.
"""
