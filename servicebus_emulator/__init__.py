"""A Service Bus for one machine: durable queues that the unmodified azure-servicebus SDK talks to.

Started as a process (``servicebus-emulator``), never imported by the rest; it imports the standard library only.
From the wire inwards: ``connection`` and ``session`` (frames), ``links`` (credit), ``queue_links`` and
``nodes`` (deliveries, requests), ``namespace`` (time, and who waits), ``broker`` (what a queue does, pure), ``journal``
and ``store`` (the disk). ``faults`` and ``trouble`` make go wrong on request what goes wrong in the service.

The promise: what a client was told is on disk, and what is on disk comes back: messages, locks, delivery counts,
schedules, dead letters, the memory of duplicates. Deliveries are at least once, as in the service.
"""
