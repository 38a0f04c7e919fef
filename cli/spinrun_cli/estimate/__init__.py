"""What a run will need before anything starts: memory, seconds, bytes and disk, by arithmetic alone.

    shape      how large a model's parts are, from its config.json
    hardware   what cards do by their makers' figures, and what is assumed beside them
    memory     of a rank of the trainer, and of a rollout
    window     seconds of each phase of a window
    run        all of that for a SpinRun, and what limits it

Nothing here reads a file, measures a machine or imports torch. docs/scaling.md explains the formulas and holds them against runs.
"""
