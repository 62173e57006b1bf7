"""A model while ``torch.export`` traces it: what stands in for its own code, and what is taken back afterwards.

``traced`` is the trace itself, and ``attributes`` takes back what the forward pass writes to modules meanwhile.
``recurrent``, ``packed`` and ``padded`` make one operation of what the tracer would take apart, ``fixed`` makes numbers
of it; ``quick_shapes``, ``sequence_shapes`` and ``shape_memory`` save it time. ``bystanders`` keeps other threads out,
``settings`` and ``quiet`` are about what cannot be traced.
"""
