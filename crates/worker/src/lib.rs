//! The loop that joins rings, datapath and trace.
