"""Side-by-side benchmarks: AIMX and other servers, one machine, one run, one generator. The table holds ratios."""
