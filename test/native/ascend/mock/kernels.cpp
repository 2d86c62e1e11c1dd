// libsigmoe_ascend_kernels.so for machines without CANN: what it exports is launch/launch_twin.cpp, linked in whole. Kernels of
// the real one are put on streams of libascendcl.so; so are these, on those of the mock.
