//! What needs no kernel: the same code is built for the host, where it is tested and fuzzed.
#![no_std]
