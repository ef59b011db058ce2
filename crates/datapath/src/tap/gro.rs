//! Frames of one flow in one `writev`: the kernel gets them as one packet that is to be segmented, and segments it only where
//! a receiver or a network card cannot take it as it is.

use std::fs::File;

use virtio_net::{Frames, GroStep, TransmitGro};

use super::engine::Engine;
use crate::{Refusal, Transmitted, sys};

/// Writes frames, in order: those of one flow together, the others by `engine`. `mtu`: the interface's.
pub fn transmit<E: Engine>(
    gro: &TransmitGro,
    mtu: u16,
    file: &File,
    engine: &mut E,
    frames: Frames<'_, '_>,
) -> Transmitted {
    let mut done = Transmitted::default();
    let mut burst = gro.burst(frames, mtu);
    while let Some(step) = burst.next_step() {
        let (GroStep::Alone(count) | GroStep::Together(count)) = step;
        let before = done.taken;
        if let GroStep::Together(_) = step {
            match sys::writev(file, burst.packet()) {
                Ok(_) => {
                    #[expect(
                        clippy::cast_possible_truncation,
                        reason = "at most BURST_MAX frames"
                    )]
                    done.add(&Transmitted {
                        taken: count,
                        bytes: burst.bytes() as u32,
                        gro_frames: 1,
                        gro_segments: count as u32,
                        ..Transmitted::default()
                    });
                    continue;
                }
                Err(error) if Refusal::of(&error) == Refusal::Later => break,
                // Whatever the reason is, each frame has its own.
                Err(_) => {}
            }
        }
        done.add(&engine.transmit(file, frames.skip(before).take(count)));
        if done.taken < before + count {
            break;
        }
    }
    done
}
