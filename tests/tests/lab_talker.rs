//! Scheduling at the talker: `ringscope lab --talker`, and launch times in a User Mode Linux talker.

use ringscope_tests::qemu::Failure;
use ringscope_tests::variants::Bench;
use serde_json::Value;

const COUNT: u64 = 200;
/// Probes that a measurement sends first.
const WARMUP: u64 = 50;

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

/// Runs the lab in `host-host` and returns its rows.
fn rows(bench: &mut Bench, arguments: &str) -> Result<Vec<Value>, Failure> {
    let line = format!(
        "ringscope lab --quick --guest uml --count {COUNT} --loads none --others none {arguments} --json 2>/tmp/said || cat /tmp/said >&2"
    );
    let ended = bench.ended(&line)?;
    let results: Value = serde_json::from_str(&ended.text).map_err(|_| ended.text)?;
    Ok(results["rows"].as_array().ok_or("no rows")?.clone())
}

/// The row of this talker, in which every probe is accounted for.
fn row<'r>(rows: &'r [Value], talker: &str) -> &'r Value {
    let row = rows.iter().find(|it| it["talker"] == talker);
    let row = row.unwrap_or_else(|| panic!("no row of {talker}: {rows:?}"));
    let [sent, lost] = ["sent", "lost"].map(|it| number(&row[it]));
    assert!(sent == COUNT && lost < COUNT / 10, "{row}");
    row
}

#[test]
fn a_talker_is_pinned_or_in_real_time_and_reported_again() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    let arguments = "--variants host-host --talker default,pinned,realtime --out /tmp/kept";
    let first = rows(&mut bench, arguments)?;
    for talker in ["default", "pinned", "realtime"] {
        assert!(row(&first, talker)["launches"].is_null());
    }
    let again = bench.ended("ringscope lab report /tmp/kept --json")?.text;
    assert_eq!(serde_json::from_str::<Value>(&again)?["rows"], Value::from(first));
    let table = bench.ended("ringscope lab report /tmp/kept")?.text;
    assert!(table.contains("host-host, talker realtime"), "{table}");
    bench.expect_nothing_left("talkers of the host");
    Ok(())
}

/// The kernel of this host may have no such disciplines: the talker is a User Mode Linux guest.
#[test]
fn probes_with_launch_times_arrive_and_what_is_dropped_is_not_lost() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    for variant in ["host-host", "tap-bridge"] {
        let arguments = format!("--variants {variant} --talker uml,etf,taprio");
        let rows = &rows(&mut bench, &arguments)?;
        assert!(rows.iter().all(|it| it["variant"] == variant), "{rows:?}");
        assert!(row(rows, "uml")["launches"].is_null());
        for talker in ["etf", "taprio"] {
            let row = row(rows, talker);
            let [missed, invalid, no_buffer] =
                ["missed", "invalid", "no_buffer"].map(|it| number(&row[it]));
            let unsent = missed + invalid + no_buffer;
            let launches = &row["launches"];
            assert!(unsent < COUNT, "{row}");
            assert!(number(&launches["early"]) <= COUNT / 2, "{row}");
            // Each drop has one cause, and the disciplines count the same ones, with those of the warm-up.
            let dropped: u64 = launches["dropped"].as_object().unwrap().values().map(number).sum();
            assert!((unsent..=unsent + WARMUP).contains(&dropped), "{row}");
            let gated = number(&launches["gated"]);
            assert_eq!(gated > 0, talker == "taprio", "{row}");
            // All parts of a round trip are known, also of one that a guest has sent.
            let composition = &row["composition"];
            let shares = composition["shares"].as_array().unwrap();
            let sum: f64 = shares.iter().map(|it| it["mean_ns"].as_f64().unwrap()).sum();
            let mean = composition["round_trip_ns"].as_f64().unwrap();
            assert!((sum - mean).abs() < 1.0, "{sum} ns is not the mean, {mean} ns: {row}");
            assert_eq!(shares[0]["stage"], "gate", "{row}");
            let is_recorded = shares.iter().any(|it| it["stage"] == "egress");
            assert_eq!(is_recorded, variant == "tap-bridge", "{row}");
        }
    }
    bench.expect_nothing_left("talkers in User Mode Linux");
    Ok(())
}

#[test]
fn a_launch_time_in_the_past_is_no_loss_and_one_that_nobody_keeps_is_early() -> Result<(), Failure>
{
    let mut bench = Bench::new()?;
    let up = bench.up("host-host", "--talker uml")?;
    assert!(up.status.success(), "{}", up.text);
    let mut ping = |discipline: &str, flags: &str| -> Result<Value, Failure> {
        bench.at_talker(&format!("/mnt/ringscope/qemu-scripts/talker {discipline}"))?;
        let ping = "ringscope agent udp-ping 10.77.0.2:7007 --warmup 0 --count 20 --priority 3";
        let text = bench.at_talker(&format!("{ping} {flags}"))?;
        Ok(serde_json::from_str(&text).map_err(|_| text)?)
    };
    let past = ping("etf", "--txtime 0")?;
    let unsent = ["missed", "invalid", "no_buffer"].map(|it| number(&past["launch"][it]));
    assert_eq!((number(&past["lost"]), unsent.iter().sum::<u64>()), (0, 20), "{past}");
    assert!(unsent[0] + unsent[1] > 0, "the kernel gives a reason: {past}");
    let unkept = ping("none", "--txtime 1000000 --wait-ms 3000")?;
    assert_eq!(number(&unkept["launch"]["early"]), 20, "{unkept}");
    bench.down()?;
    bench.expect_nothing_left("a talker in User Mode Linux");
    Ok(())
}
