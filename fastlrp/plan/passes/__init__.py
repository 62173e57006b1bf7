"""What is done to the steps of a program after lowering, and the check that follows each of these.

``fusion`` makes one step of those that one kernel does together. ``joining`` saves memory that would only be copied,
by ``placing``, ``moving`` and ``summing``. ``batch_parts`` cuts a large batch. ``check`` looks after each.
"""
