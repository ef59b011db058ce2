//! `ringscope lab`: variants are built, measured, kept, reported again, and leave nothing, whatever ends the run.

use ringscope_tests::qemu::Failure;
use ringscope_tests::variants::Bench;
use serde_json::Value;

/// Short, and with guests that boot in seconds.
const SHORT: &str = "ringscope lab --quick --guest uml --count 200";
/// Still measures when it is ended from outside, on however slow a machine.
const LONG: &str = "ringscope lab --quick --guest uml --count 20000";

/// Number of times that what depends on chance is tried.
const RUNS: usize = 3;
/// Least time that a message of the XDP program takes which a process reads, nanoseconds; measured: 28,000.
const MESSAGE_NS: f64 = 10_000.0;

/// Runs a command that has to end with this status, and returns what it prints.
fn said(bench: &mut Bench, status: i32, command: &str) -> Result<String, Failure> {
    // No wait may be endless.
    let setting =
        "await() { timeout 60 sh -c \"until grep -q '$1' /tmp/said; do sleep 0.02; done\"; }";
    let ended = bench.ended(&format!("{setting}\n{command}"))?;
    assert_eq!(ended.status.code(), Some(status), "{command}: {}", ended.text);
    Ok(ended.text)
}

/// The rows of a table in JSON, without those of a failed variant.
fn rows(results: &Value) -> Vec<(&str, &str)> {
    let rows = results["rows"].as_array().expect("rows").iter();
    rows.map(|row| (row["variant"].as_str().unwrap(), row["load"].as_str().unwrap())).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

#[test]
fn variants_are_compared_kept_and_reported_again() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    let first = said(
        &mut bench,
        0,
        &format!("{SHORT} --variants host-host,tap-bridge --out /tmp/kept --json 2>/dev/null"),
    )?;
    bench.expect_nothing_left("a run of the lab");
    let results: Value = serde_json::from_str(&first)?;
    assert_eq!(
        rows(&results),
        [
            ("host-host", "none"),
            ("host-host", "streams"),
            ("tap-bridge", "none"),
            ("tap-bridge", "streams")
        ]
    );
    assert_eq!(results["capacities"], serde_json::json!([]), "not with --quick");
    for row in results["rows"].as_array().unwrap() {
        assert_eq!(number(&row["sent"]), 200.0, "{row}");
        let composition = &row["composition"];
        let mean = number(&composition["round_trip_ns"]);
        let shares = composition["shares"].as_array().unwrap().iter();
        let sum: f64 = shares.map(|share| number(&share["mean_ns"])).sum();
        assert!((sum - mean).abs() < 1.0, "{sum} ns is not the mean, {mean} ns: {row}");
        // Both kinds of end have a clock that can be compared with the host's.
        let way = |name: &str| number(&row[name]["mean_ns"]);
        let ways = way("to_responder") + way("to_talker");
        let trip = number(&row["round_trip"]["mean_ns"]);
        assert!(0.0 < ways && ways < trip, "{ways} ns both ways of {trip} ns: {row}");
    }
    let again = said(&mut bench, 0, "ringscope lab report /tmp/kept --json")?;
    assert_eq!(again, first, "the report of what was kept");
    let table = said(&mut bench, 0, "ringscope lab report /tmp/kept")?;
    assert!(table.contains("tap-bridge") && table.contains("User Mode Linux"), "{table}");
    let refused =
        said(&mut bench, 1, &format!("{SHORT} --variants host-host --out /tmp/kept 2>&1"))?;
    assert!(refused.contains("to be empty or new"), "{refused}");
    Ok(())
}

/// The row of a variant.
fn row<'a>(results: &'a Value, variant: &str) -> &'a Value {
    let rows = results["rows"].as_array().unwrap();
    rows.iter().find(|it| it["variant"] == variant).unwrap_or_else(|| panic!("{variant}: {rows:?}"))
}

#[test]
fn a_change_is_a_row_of_its_own() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    let mut slower_ns = Vec::new();
    for _ in 0..RUNS {
        let line = format!(
            "rm -rf /tmp/kept
             {SHORT} --variants tap-bridge,tap-xdp --xdp-printk --untraced on --loads none --out /tmp/kept --json 2>/dev/null"
        );
        let results: Value = serde_json::from_str(&said(&mut bench, 0, &line)?)?;
        let names: Vec<_> = rows(&results).into_iter().map(|(variant, _)| variant).collect();
        assert_eq!(names, ["tap-bridge", "tap-bridge+untraced", "tap-xdp", "tap-xdp+printk"]);
        assert_eq!(row(&results, "tap-xdp+printk")["options"]["printk"], "read");
        // Nothing is recorded, so there are no stages of ringscoped.
        let stages = |variant: &str| {
            let shares = row(&results, variant)["composition"]["shares"].as_array().unwrap();
            shares.iter().filter(|it| it["tier"] == "D").count()
        };
        assert_eq!((stages("tap-bridge") > 0, stages("tap-bridge+untraced")), (true, 0));
        let verdicts = results["verdicts"].as_array().unwrap();
        assert!(verdicts.iter().all(|it| it["outcome"] == "too-few-repeats"), "{verdicts:?}");
        let difference = &results["differences"][0];
        assert_eq!([&difference["against"], &difference["variant"]], ["tap-xdp", "tap-xdp+printk"]);
        let parts = difference["parts"].as_array().unwrap();
        let sum: f64 = parts.iter().map(|it| number(&it["difference_ns"])).sum();
        assert!((sum - number(&difference["difference_ns"])).abs() < 1.0, "{sum}: {difference}");
        let egress = parts.iter().find(|it| it["side"] == "tx" && it["stage"] == "egress").unwrap();
        slower_ns.push(number(&egress["difference_ns"]));
        if slower_ns.last() > Some(&MESSAGE_NS) {
            break;
        }
    }
    assert!(slower_ns.last() > Some(&MESSAGE_NS), "{slower_ns:?}");
    let table = said(&mut bench, 0, "ringscope lab report /tmp/kept")?;
    for words in
        ["tap-xdp.bpf.c, calls bpf_printk", "Cost of tracing, load none: tap-bridge+untraced is "]
    {
        assert!(table.contains(words), "{words}: {table}");
    }
    bench.expect_nothing_left("rows with changes");
    Ok(())
}

#[test]
fn two_are_compared_and_one_with_itself() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    let mut compare = |two: &str| -> Result<(Value, String), Failure> {
        let line =
            format!("rm -rf /tmp/kept; {SHORT} --against {two} --out /tmp/kept --json 2>/dev/null");
        let results: Value = serde_json::from_str(&said(&mut bench, 0, &line)?)?;
        let table = said(&mut bench, 0, "ringscope lab report /tmp/kept")?;
        let verdict = results["verdicts"][0].clone();
        assert_eq!(number(&verdict["pairs"]), 6.0, "{verdict}");
        assert!(table.trim_end().ends_with(verdict["sentence"].as_str().unwrap()), "{table}");
        Ok((verdict, table))
    };
    let (verdict, table) = compare("host-host,tap-bridge")?;
    assert_eq!(verdict["outcome"], "slower", "{table}");
    assert!(table.contains("that of host-host") && !table.contains("streams"), "{table}");
    // The test calls one of 32 equal pairs different.
    let mut outcomes = Vec::new();
    for _ in 0..RUNS {
        let (verdict, _) = compare("host-host,host-host")?;
        assert_eq!(verdict["variant"], "host-host+again");
        outcomes.push(verdict["outcome"].clone());
        if outcomes.last().unwrap() == "not-to-be-told-apart" {
            break;
        }
    }
    assert_eq!(outcomes.last().unwrap(), "not-to-be-told-apart", "{outcomes:?}");
    let refused =
        said(&mut bench, 1, &format!("{SHORT} --against tap-bridge,af-xdp --repeats 5 2>&1"))?;
    assert!(refused.contains("expected 6 repeats or more"), "{refused}");
    bench.expect_nothing_left("comparisons");
    Ok(())
}

#[test]
fn the_capacity_is_searched_both_ways_and_reported_again() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    let first = said(
        &mut bench,
        0,
        &format!(
            "{SHORT} --loads none --capacity on --variants host-host,tap-bridge --out /tmp/kept --json 2>/dev/null"
        ),
    )?;
    bench.expect_nothing_left("a search of capacities");
    let results: Value = serde_json::from_str(&first)?;
    let capacities = results["capacities"].as_array().expect("capacities");
    let of = |it: &Value| format!("{} {}", it["variant"], it["way"]).replace('"', "");
    assert_eq!(
        capacities.iter().map(of).collect::<Vec<_>>(),
        [
            "host-host from-responder",
            "host-host to-responder",
            "tap-bridge from-responder",
            "tap-bridge to-responder"
        ]
    );
    for it in capacities {
        assert_eq!(it["trouble"], Value::Null, "{it}");
        let rate = number(&it["lossless_pps"]);
        assert!(rate >= 100.0 && number(&it["lossless_bits_per_s"]) == rate * 12_000.0, "{it}");
        assert!((2.0..=12.0).contains(&number(&it["trials"])), "{it}");
        let cpu = &it["cpu"];
        assert!(number(&cpu["host_s"]) > 0.0, "{it}");
        let loaded = it["loaded"].as_array().unwrap();
        assert_eq!(
            loaded.iter().map(|it| number(&it["percent"])).collect::<Vec<_>>(),
            [10.0, 50.0, 90.0]
        );
        assert!(number(&loaded[0]["probes"]["p50_ns"]) > 0.0, "{it}");
        if it["variant"] == "tap-bridge" {
            assert!(number(&cpu["back_end_s"]) > 0.0 && number(&cpu["front_end_s"]) > 0.0, "{it}");
        } else {
            assert!(cpu["back_end_s"].is_null() && cpu["front_end_s"].is_null(), "{it}");
        }
        let kept =
            format!("/tmp/kept/{}/1/capacity/{}.json", it["variant"], it["way"]).replace('"', "");
        let kept: Value = serde_json::from_str(&said(&mut bench, 0, &format!("cat {kept}"))?)?;
        let trials = kept["trials"].as_array().unwrap();
        assert_eq!(trials.len() as f64, number(&it["trials"]), "{kept}");
        assert!(trials.iter().all(|it| number(&it["sent"]) >= number(&it["received"])), "{kept}");
    }
    let again = said(&mut bench, 0, "ringscope lab report /tmp/kept --json")?;
    assert_eq!(again, first, "the report of what was kept");
    let table = said(&mut bench, 0, "ringscope lab report /tmp/kept")?;
    assert!(table.contains("Capacity: UDP packets of 1500 bytes"), "{table}");
    let page = said(&mut bench, 0, "ringscope lab report /tmp/kept --format html")?;
    assert!(page.contains("Capacity: UDP packets of 1500 bytes"), "the page");
    Ok(())
}

#[test]
fn other_programs_measure_the_same_way_and_a_busy_program_has_its_cpu() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    let flags = "--variants host-host,tap-bridge --loads none,cpu-worker --others ping,isochron";
    let first =
        said(&mut bench, 0, &format!("{SHORT} {flags} --out /tmp/kept --json 2>/dev/null"))?;
    bench.expect_nothing_left("a run of the lab with other programs");
    let results: Value = serde_json::from_str(&first)?;
    assert_eq!(rows(&results).len(), 4, "{first}");
    for row in results["rows"].as_array().unwrap() {
        let [ping, isochron] = &row["others"].as_array().unwrap()[..] else { panic!("{row}") };
        assert_eq!((&ping["probe"], number(&ping["sent"])), (&"ping".into(), 20.0), "{row}");
        assert_eq!((&isochron["probe"], number(&isochron["sent"])), (&"isochron".into(), 50.0));
        for other in [ping, isochron] {
            assert!(number(&other["lost"]) < number(&other["sent"]), "{row}");
            // Clocks that were compared wrongly are apart by the time since 1970, or since the guest was started.
            let figures = &other["figures"];
            assert!(number(&figures["min_ns"]) > 0.0 && number(&figures["max_ns"]) < 3e9, "{row}");
        }
        let busy = row["pressure"].as_array().unwrap();
        let cpus = std::thread::available_parallelism()?.get();
        match busy.first() {
            None => assert_eq!(row["load"], "none"),
            // It shares the CPU with the daemon's worker, which sleeps between probes.
            Some(it) => {
                let share = number(&it["cpu_seconds"]) / number(&it["seconds"]);
                assert!(share > 0.0, "{row}");
                assert_eq!(
                    (number(&it["cpu"]) as usize, &row["load"]),
                    (cpus - 1, &"cpu-worker".into())
                );
            }
        }
    }
    let again = said(&mut bench, 0, "ringscope lab report /tmp/kept --json")?;
    assert_eq!(again, first, "the report of what was kept");
    let table = said(&mut bench, 0, "ringscope lab report /tmp/kept")?;
    assert!(table.contains("isochron  to the responder"), "{table}");
    assert!(table.contains("tap-bridge, load cpu-worker: busy programs took"), "{table}");
    let refused = said(&mut bench, 1, &format!("{SHORT} --loads cpu-worker --pin off 2>&1"))?;
    assert!(refused.contains("--loads cpu-worker: expected that each part"), "{refused}");
    Ok(())
}

#[test]
fn iperf3_is_a_load_where_both_ends_have_it() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    let flags = "--variants tap-bridge --loads iperf3 --others none";
    let text = said(&mut bench, 0, &format!("{SHORT} {flags} --json 2>/dev/null"))?;
    let results: Value = serde_json::from_str(&text)?;
    assert_eq!(rows(&results), [("tap-bridge", "iperf3")], "{text}");
    bench.expect_nothing_left("iperf3 as a load");
    let text = said(
        &mut bench,
        0,
        &format!(
            "mkdir /tmp/bin; ln -s /usr/bin/* /usr/sbin/* /bin/* /tmp/bin/ 2>/dev/null; rm /tmp/bin/iperf3
             PATH=/mnt/bin:/tmp/bin {SHORT} --variants host-host --loads none,iperf3 --others none 2>&1"
        ),
    )?;
    assert!(
        text.contains("host-host, load iperf3: not measured: expected the program iperf3"),
        "{text}"
    );
    assert!(text.contains("host-host  none"), "{text}");
    Ok(())
}

#[test]
fn a_signal_ends_it_with_what_it_has_and_nothing_is_left() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    for (lab, until, has_table) in
        [(SHORT, "tap-bridge: building", true), (LONG, "host-host: measuring", false)]
    {
        let text = said(
            &mut bench,
            0,
            &format!(
                "set -m; rm -rf /tmp/kept
                 {lab} --variants host-host,tap-bridge --out /tmp/kept >/tmp/table 2>/tmp/said &
                 await '{until}'
                 sleep 0.5; kill -INT %1; wait %1; echo \"status $?\"; cat /tmp/table /tmp/said"
            ),
        )?;
        assert!(text.contains("status 130") && text.contains("everything is taken down"), "{text}");
        assert_eq!(text.contains("p99.9"), has_table, "{text}");
        bench.expect_nothing_left("a signal");
    }
    Ok(())
}

#[test]
fn what_a_killed_one_left_is_taken_down_by_the_next() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    let text = said(
        &mut bench,
        0,
        &format!(
            "{LONG} --variants tap-bridge >/dev/null 2>/tmp/said &
             await measuring
             kill -KILL $!; wait $! 2>/dev/null
             {SHORT} --variants host-host --loads none 2>&1"
        ),
    )?;
    assert!(text.contains("taken down what an earlier lab has left: tap-bridge"), "{text}");
    bench.expect_nothing_left("a killed lab and its next start");
    Ok(())
}

#[test]
fn a_variant_that_cannot_be_built_is_named_and_the_others_go_on() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    let text =
        said(&mut bench, 1, &format!("{SHORT} --variants qemu-tap,host-host --loads none 2>&1"))?;
    assert!(text.contains("qemu-tap: given up: expected --guest qemu"), "{text}");
    assert!(text.contains("host-host  none"), "{text}");
    // A program that is missing: everything else of the host's PATH is there.
    let text = said(
        &mut bench,
        1,
        &format!(
            "mkdir /tmp/bin; ln -s /usr/bin/* /usr/sbin/* /bin/* /tmp/bin/ 2>/dev/null; rm /tmp/bin/linux.uml
             PATH=/mnt/bin:/tmp/bin {SHORT} --variants tap-bridge --loads none 2>&1"
        ),
    )?;
    assert!(text.contains("expected linux.uml, found none: run qemu-scripts/setup"), "{text}");
    bench.expect_nothing_left("variants that fail");
    Ok(())
}

#[test]
fn two_at_once_other_users_and_wrong_names_are_refused() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    let text = said(
        &mut bench,
        0,
        &format!(
            "{SHORT} --variants host-host --loads none >/dev/null 2>/tmp/said & first=$!
             await measuring
             {SHORT} --variants host-host 2>&1; echo \"status $?\"; wait $first; echo \"first $?\""
        ),
    )?;
    assert!(text.contains("another `ringscope lab` runs on this host (process "), "{text}");
    assert!(text.contains("status 1") && text.contains("first 0"), "{text}");
    let text = said(&mut bench, 1, &format!("setpriv --reuid 65534 {SHORT} 2>&1"))?;
    assert!(
        text.contains("expected root, for namespaces and interfaces; found user 65534"),
        "{text}"
    );
    let text = said(&mut bench, 1, &format!("{SHORT} --variants tap-brigde 2>&1"))?;
    assert!(text.contains("found tap-brigde") && text.contains("tap-bridge"), "{text}");
    let text = said(
        &mut bench,
        1,
        &format!("RINGSCOPE_QEMU_SCRIPTS=/nowhere {SHORT} --variants host-host 2>&1"),
    )?;
    assert!(text.contains("expected the script variant in /nowhere"), "{text}");
    let text = said(&mut bench, 1, "ringscope lab report /tmp 2>&1")?;
    assert!(text.contains("/tmp/lab.json"), "{text}");
    Ok(())
}
