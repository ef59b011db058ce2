use super::*;
use crate::case::Case;
use crate::fixture;
use crate::kept::{Host, SENT, TURNED, Tried};
use crate::plan::WARMUP;
use crate::talker::Talker;
use crate::variant::Variant;
use std::path::Path;

fn manifest(variant: &str, trouble: Option<&str>) -> Manifest {
    Manifest {
        host: Host { kernel: "6".into(), cpu: "</script><b>".into(), cpus: 2 },
        repeats: 1,
        variants: vec![Tried {
            case: Case::of(&Variant { name: variant.into(), title: "<i>none</i>".into() }),
            trouble: trouble.map(str::to_owned),
        }],
        ..fixture::manifest()
    }
}

/// The data in a page.
fn data(page: &str) -> serde_json::Value {
    let (_, text) = page.split_once("type=\"application/json\">").unwrap();
    let (text, _) = text.split_once("</script>").unwrap();
    serde_json::from_str(text).unwrap()
}

fn html(dir: &Path, manifest: &Manifest) -> String {
    let kept = Kept::create(dir).unwrap();
    kept.write(manifest).unwrap();
    html_of(&kept, manifest)
}

fn html_of(kept: &Kept, manifest: &Manifest) -> String {
    let results = Results::read(kept, manifest).unwrap();
    assert!(recordings(kept, manifest, &results).unwrap().is_empty());
    to_html(kept, manifest, &results, Some("files")).unwrap()
}

#[test]
fn a_run_without_measurements_has_a_page_that_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let page = html(dir.path(), &manifest("a", Some("no <program>")));
    // Nothing of the run is markup.
    assert!(!page.contains("<i>none") && !page.contains("<program>"));
    assert_eq!(page.matches("</script>").count(), 2);
    let data = data(&page);
    assert_eq!(data["results"]["troubles"][0]["why"], "no <program>");
    assert_eq!(data["results"]["host"]["cpu"], "</script><b>");
    assert_eq!(data["details"].as_array().unwrap().len(), 0);
    assert!(data["clocks"].is_null());
}

#[test]
fn a_run_without_recordings_shows_its_slowest_probes_and_links_to_no_page() {
    let dir = tempfile::tempdir().unwrap();
    let kept = Kept::create(dir.path()).unwrap();
    let manifest = manifest("host-host", None);
    let directory = kept.measurement("host-host", 0, Load::None, Talker::Default);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("proof.json"), "{}").unwrap();
    let mut samples = "sequence,intended_ns,sent_ns,received_ns\n".to_owned();
    samples += &"0,1,1,2\n".repeat(WARMUP);
    samples += "50,92,100,200\n51,1000,1000,1300\n52,2000,2000,\n";
    fs::write(directory.join(SAMPLES), samples).unwrap();
    let head = "run,sequence,sent_ns,sent_kernel_ns,received_kernel_ns,received_ns\n";
    let sent = "1,50,100,103,190,200\n1,51,1000,1010,1280,1300\n1,52,2000,2010,,\n";
    fs::write(directory.join(SENT), format!("{head}{sent}")).unwrap();
    let turned = "1,50,7020,7025,7000,7011\n1,51,8020,8025,8000,8011\n";
    fs::write(directory.join(TURNED), format!("{head}{turned}")).unwrap();

    let data = data(&html_of(&kept, &manifest));
    let detail = &data["details"][0];
    assert_eq!(detail["pages"].as_array().unwrap().len(), 0);
    let slowest = detail["slowest"].as_array().unwrap();
    assert_eq!(slowest.len(), 2, "one was lost");
    assert_eq!([&slowest[0]["total_ns"], &slowest[1]["total_ns"]], [300, 108]);
    assert_eq!(slowest[0]["file"], serde_json::Value::Null);
    // The parts stand in the order of the composition, and add up.
    let shares = data["results"]["rows"][0]["composition"]["shares"].as_array().unwrap();
    let parts = detail["parts"].as_array().unwrap();
    assert_eq!(shares.len(), parts.len());
    for (share, part) in shares.iter().zip(parts) {
        assert_eq!(share["stage"], part["stage"]);
    }
    let parts_ns = slowest[1]["parts_ns"].as_array().unwrap();
    assert_eq!(parts_ns.iter().map(|it| it.as_i64().unwrap()).sum::<i64>(), 108);
    assert_eq!(detail["curve"].as_array().unwrap().last().unwrap()[1], 300);
}

#[test]
fn a_curve_is_nearest_rank_and_ends_with_the_longest() {
    let all: Vec<_> = (1..=1000).collect();
    let points = curve(&all);
    let at = |rarity: f64| points.iter().find(|it| (it.0 - rarity).abs() < 1e-9).unwrap().1;
    assert_eq!([at(0.0), at(1.0), at(2.0), at(3.0)], [1, 900, 990, 1000]);
    assert!(points.is_sorted());
    assert_eq!(curve(&[7]), [(0.0, 7)]);
    assert_eq!(curve(&[]), []);
}

#[test]
fn a_page_stays_in_its_directory() {
    assert_eq!(file_name("../<a>", Load::None, Talker::Default, 1), "____a_-none-2.html");
    assert_eq!(file_name("a", Load::None, Talker::Etf, 0), "a-none-etf-1.html");
}
