"""What ``benchmarks/gpu.sh`` measures, one module per part; every part also runs alone, and on a CPU in small."""
