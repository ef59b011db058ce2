//! What the fuzz targets share: a guest's memory, the story of a hostile driver, and that of an honest one.
//!
//! - [`memory`]: the guest's memory, and which of its bytes the device may have changed.
//! - [`burst`]: the device's side, one burst after the other, as a worker serves them.
//! - [`hostile`]: targets `split` and `packed`.
//! - [`honest`]: target `oracle`.
//! - [`frames`]: target `frames`.
//! - [`recordings`]: target `recordings`.
//! - [`control`]: target `control`.

pub mod burst;
pub mod control;
pub mod frames;
pub mod honest;
pub mod hostile;
pub mod memory;
pub mod recordings;
