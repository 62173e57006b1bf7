"""A model while ``torch.export`` traces it: what stands in for its own code, and what is taken back afterwards.

``traced`` is the trace itself, and ``attributes`` takes back what the forward pass writes to modules meanwhile.
``recurrent``, ``packed`` and ``fixed`` make one operation, or numbers, of what the tracer would take apart;
``quick_shapes``, ``sequence_shapes`` and ``shape_memory`` save it time. ``bystanders`` keeps other threads out,
``settings`` and ``quiet`` are about what cannot be traced.
"""
