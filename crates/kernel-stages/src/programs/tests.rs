//! The programs on tracepoints of KVM, run by this kernel without KVM: they are attached to tracepoints of system calls that
//! this test makes, in place of KVM's. `getpriority` stands for an exit, with the reason and the instruction set as its
//! arguments; `getuid` for an entry; `getpgid` for the end of a halt, with the halt's length.

use std::cell::RefCell;
use std::hint::spin_loop;
use std::ops::Range;
use std::path::Path;
use std::process::{self, Command};
use std::thread;
use std::time::{Duration, Instant};

use burst_trace::InterruptionCause;
use libbpf_rs::TracepointCategory;
use rustix::process::{Pid, Uid, geteuid, getpgid, getpriority_pgrp, getpriority_user, getuid};

use super::*;
use crate::event::{Event, ThreadEvent, Whose};
use crate::kvm::Field;
use crate::sys::Rings;

const TRACING: &str = "/sys/kernel/tracing";
const NUMBER: u32 = 7;
/// EPT_VIOLATION of VMX.
const VIOLATION: u32 = 48;
/// HLT of VMX.
const HLT: u32 = 12;

fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        spin_loop();
    }
}

fn pid(number: u32) -> Option<Pid> {
    Pid::from_raw(number.cast_signed())
}

/// An exit of VMX.
fn leave(reason: u32) {
    let _ = getpriority_pgrp(pid(reason));
}

/// An exit of SVM.
fn leave_svm(reason: u32) {
    let _ = getpriority_user(Uid::from_raw(reason));
}

fn enter() {
    let _ = getuid();
}

fn end_halt(halted: Duration) {
    let _ = getpgid(pid(halted.as_nanos() as u32));
}

/// The programs on system calls' tracepoints, for the threads of this process.
fn attach() -> Programs {
    let mut object = ObjectBuilder::default().open_memory(&OBJECT.0).unwrap();
    let field = |offset, size| Field { offset, size };
    // Arguments of a system call have 8 bytes each, after 16 (/sys/kernel/tracing/events/syscalls).
    let fields = Fields { exit_reason: field(24, 8), isa: field(16, 4), ns: field(16, 8) };
    set_fields(&mut object, &fields).unwrap();
    let [threads, _] = GROUPS;
    for mut program in object.progs_mut() {
        let is_ours = |names: &[&str]| names.iter().any(|ours| program.name() == *ours);
        let is_wanted = is_ours(threads.names) || is_ours(threads.kvm);
        program.set_autoload(is_wanted);
    }
    let object = object.load().expect("the verifier accepts the programs");
    let attach = |program: libbpf_rs::ProgramMut<'_>| {
        let category = TracepointCategory::Syscalls;
        match program.name().to_str().unwrap() {
            "leaving_guest" => program.attach_tracepoint(category, "sys_enter_getpriority"),
            "entering_guest" => program.attach_tracepoint(category, "sys_enter_getuid"),
            "ending_halt" => program.attach_tracepoint(category, "sys_enter_getpgid"),
            _ => program.attach(),
        }
    };
    let links = object.progs_mut().filter(|it| it.autoload()).map(attach);
    let links = links.collect::<libbpf_rs::Result<_>>().unwrap();
    let maps = Maps::of(&object).unwrap();
    let attached = Links::Loaded(links, object);
    let programs = Programs { attached, maps, sees_threads: true, is_whole: false, kvm: Ok(()) };
    programs.maps.follow(process::id(), Process::FrontEnd(NUMBER)).unwrap();
    programs
}

/// What the programs tell of this thread's exits while `each` runs.
fn told(programs: &Programs, each: impl FnOnce()) -> Vec<ThreadEvent> {
    // From its next run on, the programs know whose thread this is.
    thread::sleep(Duration::from_millis(1));
    let events = RefCell::new(Vec::new());
    let take = |bytes: &[u8]| {
        if let Some(Event::Thread(event)) = Event::read(bytes) {
            events.borrow_mut().push(event);
        }
    };
    let mut rings = Rings::open(programs.maps.events.as_fd(), &[], take).unwrap();
    rings.consume().unwrap();
    events.borrow_mut().clear();
    each();
    rings.consume().unwrap();
    drop(rings);
    let thread = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
    let mut events = events.into_inner();
    events.retain(|it| it.cause == InterruptionCause::KvmExit && it.thread == thread);
    events
}

fn took(events: &[ThreadEvent]) -> Duration {
    Duration::from_nanos(events.iter().map(|it| it.end_ns - it.start_ns).sum())
}

/// Repeats `each` until the programs report that exits of `exit` (their [`ThreadEvent::detail`]) took about this time together. On a
/// busy machine another thread may run meanwhile: that time has another cause.
fn expect(programs: &Programs, exit: u32, us: Range<u64>, each: impl Fn()) {
    let mut all = Vec::new();
    for _ in 0..50 {
        let events = told(programs, &each);
        assert!(events.iter().all(|it| it.detail == exit), "{events:?}");
        assert!(events.iter().all(|it| it.whose == Whose::FrontEnd(NUMBER)), "{events:?}");
        let took = took(&events);
        if us.contains(&(took.as_micros() as u64)) {
            return;
        }
        all.push(took);
    }
    panic!("expected {us:?} us of exits, found {all:?}");
}

const US: Duration = Duration::from_micros(1);

/// Needs tracefs at its place: the test below mounts it.
#[test]
#[ignore = "run by the next test"]
fn with_tracefs() {
    let programs = attach();
    let vmx = |reason| 1 << 24 | reason;
    expect(&programs, vmx(VIOLATION), 500..600, || {
        leave(VIOLATION);
        spin(500 * US);
        enter();
        spin(500 * US);
    });
    // Reasons of SVM with the highest bit, and one without.
    for (reason, low) in [(u32::MAX - 1, 0xff_fffe), (0x8000_0004, 0x80_0004), (0x400, 0x400)] {
        expect(&programs, 2 << 24 | low, 200..300, || {
            leave_svm(reason);
            spin(200 * US);
            enter();
        });
    }
    // A halt, and what comes after its end.
    expect(&programs, vmx(HLT), 300..400, || {
        leave(HLT);
        spin(500 * US);
        end_halt(500 * US);
        spin(300 * US);
        enter();
    });
    // A halt for another reason, of which KVM says how long it took, and what came before it.
    expect(&programs, vmx(VIOLATION), 300..400, || {
        leave(VIOLATION);
        spin(300 * US);
        spin(500 * US);
        end_halt(500 * US);
        enter();
    });
    // A sleep that is no halt: in another system call of the front end's.
    expect(&programs, vmx(VIOLATION), 5000..6000, || {
        leave(VIOLATION);
        thread::sleep(5000 * US);
        enter();
    });
    // Too short to be told, unless two system calls take longer here; and an entry that ends no exit.
    expect(&programs, vmx(VIOLATION), 0..10, || {
        leave(VIOLATION);
        enter();
        spin(500 * US);
        enter();
    });
}

#[test]
fn exits_are_told_from_halts_and_short_ones_by_this_kernel() {
    if !geteuid().is_root() {
        eprintln!("not run: only root may load programs");
        return;
    }
    let mount = format!(
        "test -d {TRACING}/events || mount -t tracefs tracefs {TRACING} && \
         exec \"$0\" --exact programs::tests::with_tracefs --ignored"
    );
    let test = std::env::current_exe().unwrap();
    let output =
        Command::new("unshare").args(["--mount", "sh", "-c", &mount]).arg(test).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && Path::new(TRACING).exists(), "{said}");
}
