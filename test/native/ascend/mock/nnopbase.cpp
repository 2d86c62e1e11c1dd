// libnnopbase.so of the mock: looked for before libopapi.so, which here holds all functions.
