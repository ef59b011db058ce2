//! What to tune when a stage is large.

/// The advice for the stage named `stage` of a guest with this number of queue pairs, as a part of a sentence.
#[must_use]
pub fn advice(stage: &str, queue_pairs: usize) -> Option<&'static str> {
    Some(match stage {
        // One queue pair has one worker.
        "notice" if queue_pairs == 1 => {
            "the worker sleeps or waits for a CPU before it looks at the queue: poll longer, or keep other work off its CPU \
             (--cpus, --sched)"
        }
        "queued" if queue_pairs == 1 => {
            "the ring held more than a burst: the worker is the bottleneck; give the guest more queue pairs (--queue-pairs), \
             each with a worker"
        }
        "guest-send" => "look at the guest's stack, queueing discipline and scheduling",
        "wakeup" => {
            "look at how the worker is scheduled: pin it (--cpus), give it a real-time class (--sched), keep the CPU out of deep \
             C-states, or poll (--poll always)"
        }
        "notice" => {
            "the worker is busy with other queues before it looks at this one, or sleeps: split the queues over workers \
             (--cpus), or poll longer"
        }
        "queued" => {
            "the ring held more than a burst: the worker is the bottleneck; split the queues over workers (--cpus)"
        }
        "limited" => {
            "the guest's limit held it back: raise it (--limit-tx, --limit-rx, ringscope ctl NAME limit), or send less"
        }
        "gather" => {
            "the guest's chains are long or indirect, or its memory far: use huge pages for the guest"
        }
        "egress" => {
            "the datapath itself takes the time: compare another one (tap, macvtap, af-xdp), or look behind it"
        }
        "complete" => "completions wait for the burst: look at its size",
        "signal" => {
            "telling the guest is a system call: the event index (VIRTIO_F_EVENT_IDX) or interrupt suppression in the guest saves most \
             of them"
        }
        "host-tx" => {
            "look at what is behind the datapath: bridge, OVS, queueing discipline, time gates"
        }
        "host-rx" => "look at interrupt moderation and affinity, the bridge or OVS, and ksoftirqd",
        "starved" => {
            "the guest posts buffers too slowly, or its ring is too small: a larger rx_queue_size, a vCPU of its own"
        }
        "place" => {
            "frames are large or memory is far: look at frame sizes, NUMA placement, checksums finished in software"
        }
        "publish" => "look at mergeable buffers and batching",
        "inject" => "the vCPU is halted or preempted: pin it, use posted interrupts",
        "guest-receive" => "look at the guest's softirq and scheduling",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::{Place, places};
    use burst_trace::Direction;

    #[test]
    fn every_stage_has_advice() {
        for place in [Direction::Tx, Direction::Rx].into_iter().flat_map(places) {
            let name = match place {
                Place::Daemon(stage) => stage.name(),
                Place::Outside(name, _) => name,
            };
            assert!(advice(name, 1).is_some() && advice(name, 2).is_some(), "{name}");
            assert!(!advice(name, 1).unwrap().contains("split the queues"), "{name}");
        }
    }
}
