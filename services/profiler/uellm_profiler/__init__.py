"""The resource profiler: what will a query cost?"""
