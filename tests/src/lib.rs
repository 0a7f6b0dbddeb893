//! The lab, the namespaces and the link emulator the whole-system tests run on.
