// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// The threads that are followed. Most threads of a host are not: each of them costs one look into a map.
#pragma once

// Workers' threads: from thread id to worker number.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} workers SEC(".maps");

// Whose threads are followed: all of a front end or of a program at the far end, and of the daemon its workers'.
enum subject {
	NOBODY = 0,
	WORKER = 1,
	FRONT_END = 2,
	FAR_END = 3,
};

struct process {
	__u32 subject;
	// The front end's number, or a worker's; 0 for others.
	__u32 number;
};

// By process id.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct process);
} processes SEC(".maps");

// Why a followed thread does not run, where that is an interruption.
struct absence {
	__u64 time;
	// 0: it runs, or rests.
	__u32 cause;
	__u32 detail;
	__u32 cpu;
	// The shortest time that is told, ns.
	__u32 least;
	__u32 process;
	__u32 culprit;
	__u32 policy;
	__u32 priority;
	char command[16];
};

// A followed thread.
struct thread {
	struct process of;
	__u32 id;
	// Its process. Another one may get the same thread id later.
	__u32 process;
	// When it was woken up, if it does not run yet; otherwise 0.
	__u64 woken;
	// When a worker woke it up, if it is a front end's and does not run yet; otherwise 0.
	__u64 called;
	struct absence absence;
};

// By thread id. A thread that ends is removed. Where that is not seen, the least recently used make room for others.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct thread);
} threads SEC(".maps");

// include/linux/sched.h: PF_KTHREAD.
#define KERNEL_THREAD 0x00200000

// The entry of a thread that belongs to `of`.
static __always_inline struct thread *known(struct process *of, struct task_struct *task)
{
	struct thread new = {}, *thread;
	__u32 tid = task->pid;

	if (!of->subject)
		return 0;
	thread = bpf_map_lookup_elem(&threads, &tid);
	if (thread && thread->process == (__u32)task->tgid) {
		thread->of = *of;
		return thread;
	}
	new.of = *of;
	new.id = tid;
	new.process = task->tgid;
	bpf_map_update_elem(&threads, &tid, &new, BPF_ANY);
	return bpf_map_lookup_elem(&threads, &tid);
}

// The entry of a thread, if it is followed.
static __always_inline struct thread *followed(struct task_struct *task)
{
	__u32 tid = task->pid, tgid = task->tgid, *worker;
	struct process *process, of;

	if (!tid || task->flags & KERNEL_THREAD)
		return 0;
	process = bpf_map_lookup_elem(&processes, &tgid);
	if (!process)
		return 0;
	of = *process;
	if (of.subject == WORKER) {
		worker = bpf_map_lookup_elem(&workers, &tid);
		if (!worker)
			return 0;
		of.number = *worker;
	}
	return known(&of, task);
}
