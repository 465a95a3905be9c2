//! `btfs get` of a CID between two daemons on loopback, beside a raw libp2p stream.

use super::report::{Bound, Line, Report};
use super::{Source, process, raw};
use crate::node::Node;

pub(super) fn run(source: &Source, report: &mut Report) {
    let mut giver = Node::init(None);
    let added = giver.json(&["add", source.path()]);
    let cid = added["cid"].as_str().expect("a CID");
    giver.start();
    let mut getter = Node::init(None);
    getter.start();
    getter.json(&["swarm", "connect", &giver.address("/tcp/")]);

    let before = raw::rate(source.bytes);
    let spent = (process::cpu(giver.pid()), process::cpu(getter.pid()));
    let target = getter.file("got");
    let path = target.to_str().expect("a plain name");
    let got = process::run(&mut getter.command(&["get", cid, "-o", path, "--json"]));
    let spent = (process::cpu(giver.pid()) - spent.0, process::cpu(getter.pid()) - spent.1);
    let after = raw::rate(source.bytes);
    source.must_equal(&target);

    report.line(Line {
        name: "get over libp2p, rate",
        value: source.mib() / got.wall,
        unit: "MiB/s",
        yardstick: Some(((before + after) / 2.0, "raw stream")),
        bound: Bound::RatioAtLeast(0.2),
    });
    for (name, cpu) in
        [("get over libp2p, CPU of the giver", spent.0), ("get over libp2p, CPU of the getter", spent.1)]
    {
        let value = cpu / source.gib();
        report.line(Line { name, value, unit: "s/GiB", yardstick: None, bound: Bound::None });
    }
    report.memory("get over libp2p, peak of the giver", giver.peak_memory());
    report.memory("get over libp2p, peak of the getter", getter.peak_memory());
}
