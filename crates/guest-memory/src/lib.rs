//! Guest-physical addresses to checked host bytes.
