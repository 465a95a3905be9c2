//! What each side refuses: answers for another agreement, epoch, nonce, leaf or path length; vouchers that are lower,
//! equal, above the lock, high-s, for another channel, ledger or host.

use btfs_ledger::typed::{Agreement, ChannelTerms, Document, Domain, Signed, Voucher};
use btfs_ledger::{B256, Btt, PublicKey, SecretKey, Signature};

use super::world::{DAY, World, btt};
use crate::audit::{Verdict, judge};
use crate::messages::{AuditReply, AuditRequest, Refusal, RentalReply, RentalRequest};
use crate::ports::CourierError;
use crate::renter::records::RenterAgreement;

/// One renter, one host, one agreement of 20 days, with the first day over.
struct Pair {
    world: World,
    id: B256,
    r: RenterAgreement,
}

fn pair() -> Pair {
    let world = World::new(3);
    world.rent_out(1..2);
    let root = world.add(0, 300_000);
    world.store_and_wait(0, World::order(root, 20, None, Some(1)));
    let renter = world.market(0).renter().clone();
    let (id, r) = world.on(0, async move { renter.0.agreements().await.unwrap().pop().unwrap() });
    Pair { world, id, r }
}

impl Pair {
    fn audit(&self, request: &AuditRequest) -> AuditReply {
        let (host, peer, request) = (self.world.market(1).host().clone(), self.renter(), request.clone());
        self.world.on(1, async move { host.audit(peer, request).await })
    }

    fn renter(&self) -> PublicKey {
        self.world.nodes[0].key.public()
    }

    fn rental(&self, peer: PublicKey, request: RentalRequest) -> RentalReply {
        let host = self.world.market(1).host().clone();
        self.world.on(1, async move { host.rental(peer, request).await })
    }

    fn send(&self, voucher: Signed<Voucher>) -> RentalReply {
        self.rental(self.renter(), RentalRequest::Voucher { id: self.id, voucher })
    }

    fn voucher(&self, amount: Btt, epochs: u32) -> Voucher {
        Voucher { channel: self.r.agreement.channel, stream: self.id, amount, epochs }
    }

    fn sign(&self, voucher: Voucher) -> Signed<Voucher> {
        Signed::sign(voucher, self.world.ledger.domain(), &self.world.nodes[0].key)
    }

    fn ask(&self, from: u32, epoch: u32, nonce: u8) -> AuditRequest {
        AuditRequest { id: self.id, from, epoch, nonce: B256::repeat_byte(nonce) }
    }
}

fn refused(reply: RentalReply) -> String {
    match reply {
        RentalReply::Refused(refusal) => refusal.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn an_answer_holds_for_its_own_question_only() {
    let p = pair();
    p.world.day(0);
    p.world.ledger.step(DAY).unwrap();
    let request = p.ask(1, 1, 9);
    let reply = p.audit(&request);
    let AuditReply::Proof(leaves) = &reply else { panic!("{reply:?}") };
    let a = &p.r.agreement;
    let judged = |a: &Agreement, q: &AuditRequest, reply: AuditReply| judge(a, q, Ok(reply));
    assert_eq!(judged(a, &request, reply.clone()), Verdict::Pass);
    let fails = |verdict: Verdict| assert!(matches!(verdict, Verdict::Fail(_)), "{verdict:?}");
    let other = Agreement { id: B256::repeat_byte(1), ..a.clone() };
    fails(judged(&other, &request, reply.clone()));
    fails(judged(a, &AuditRequest { epoch: 2, ..request.clone() }, reply.clone()));
    fails(judged(a, &AuditRequest { nonce: B256::repeat_byte(8), ..request.clone() }, reply.clone()));
    let changed = |f: fn(&mut Vec<btfs_storage::proof::LeafProof>)| {
        let mut leaves = leaves.clone();
        f(&mut leaves);
        judged(a, &request, AuditReply::Proof(leaves))
    };
    fails(changed(|l| l[0].data[0] ^= 1));
    // Two leaves alone may be the same one, drawn twice.
    fails(changed(|l| l.rotate_left(1)));
    fails(changed(|l| l[3].path.truncate(1)));
    fails(changed(|l| l[3].path.push([0; 32])));
    fails(changed(|l| drop(l.pop())));
    fails(changed(|l| l.push(l[0].clone())));
    fails(judged(a, &request, AuditReply::NotFound));
    assert_eq!(judge(a, &request, Err(CourierError::Timeout)), Verdict::Timeout);
    assert_eq!(judge(a, &request, Err(CourierError::Unreachable(String::new()))), Verdict::Offline);
}

#[test]
fn a_host_answers_four_audits_an_epoch_about_ended_epochs_to_its_renter() {
    let p = pair();
    let early = p.audit(&p.ask(0, 0, 1));
    assert!(matches!(early, AuditReply::Refused(Refusal::Skew { .. })), "{early:?}");
    p.world.kill(0);
    p.world.ledger.step(DAY).unwrap();
    for nonce in 0..4 {
        assert!(matches!(p.audit(&p.ask(0, 0, nonce)), AuditReply::Proof(_)));
    }
    let fifth = p.audit(&p.ask(0, 0, 5));
    assert!(matches!(fifth, AuditReply::Refused(Refusal::Rate(_))), "{fifth:?}");
    p.world.ledger.step(DAY).unwrap();
    for (from, epoch) in [(0, 14), (2, 1), (0, 20)] {
        assert!(matches!(p.audit(&p.ask(from, epoch, 1)), AuditReply::Refused(Refusal::Terms(_))));
    }
    let host = p.world.market(1).host().clone();
    let (stranger, request) = (p.world.nodes[2].key.public(), p.ask(0, 0, 1));
    let reply = p.world.on(1, async move { host.audit(stranger, request).await });
    assert_eq!(reply, AuditReply::Refused(Refusal::Unknown));
}

#[test]
fn vouchers_are_credited_as_the_protocol_says() {
    let p = pair();
    for _ in 0..3 {
        p.world.day(0);
    }
    let price = p.r.agreement.epoch_price;
    let times = |n| price.checked_mul(n).unwrap();
    // Equal: acknowledged again. Lower: behind, with the better one.
    let equal = p.send(p.sign(p.voucher(times(3), 3)));
    assert_eq!(equal, RentalReply::Acknowledged { amount: times(3), epochs: 3 });
    for lower in [p.voucher(times(2), 2), p.voucher(times(2), 3), p.voucher(Btt::ZERO, 0)] {
        let RentalReply::Behind { voucher } = p.send(p.sign(lower)) else { panic!("behind") };
        assert_eq!(voucher.document, p.voucher(times(3), 3));
    }
    // Epochs that nobody proved, amounts above the lock.
    assert!(refused(p.send(p.sign(p.voucher(times(4), 4)))).contains("proofs were asked for only below 3"));
    assert!(refused(p.send(p.sign(p.voucher(btt(2000), 3)))).contains("of the lock"));
    // High s: the mirror image of a good signature.
    let good = p.sign(p.voucher(times(5), 3));
    let high = Signed { document: good.document.clone(), signature: mirrored(&good.signature) };
    assert!(refused(p.send(high)).contains("malleable"));
    // Tampered with after it was signed: the signature is then nobody's that counts.
    let raised = Signed { document: p.voucher(times(6), 3), signature: good.signature };
    assert!(refused(p.send(raised)).contains("signed by"));
    // Another channel, another ledger, another signer, another stream.
    let foreign = Voucher { channel: B256::repeat_byte(1), ..p.voucher(times(5), 3) };
    assert!(refused(p.send(p.sign(foreign))).contains("channel"));
    let ledger = Domain::embedded(&B256::repeat_byte(2));
    let replayed = Signed::sign(p.voucher(times(5), 3), &ledger, &p.world.nodes[0].key);
    assert!(refused(p.send(replayed)).contains("signed by"));
    let stranger = Signed::sign(p.voucher(times(5), 3), p.world.ledger.domain(), &p.world.nodes[2].key);
    assert!(refused(p.send(stranger)).contains("signed by"));
    let stream = Voucher { stream: B256::repeat_byte(1), ..p.voucher(times(5), 3) };
    assert!(refused(p.send(p.sign(stream))).contains("another stream"));
    // Another host: its channel has another id, so a voucher for it is none here.
    let elsewhere = ChannelTerms { host: p.world.nodes[2].key.address(), ..p.r.channel };
    let other_host = Voucher { channel: elsewhere.id(), ..p.voucher(times(5), 3) };
    assert!(refused(p.send(p.sign(other_host))).contains("channel"));
    // A stranger does not learn of the agreement at all.
    let asked = p.rental(p.world.nodes[2].key.public(), RentalRequest::Status { id: p.id });
    assert_eq!(asked, RentalReply::Refused(Refusal::Unknown));
    // Nothing of all that moved the host's books.
    let RentalReply::Status(status) = p.rental(p.renter(), RentalRequest::Status { id: p.id }) else {
        panic!()
    };
    assert_eq!(status.voucher.unwrap().document, p.voucher(times(3), 3));
    p.world.check_supply();
}

/// The other signature of the same digest, with s above half the order.
fn mirrored(signature: &Signature) -> Signature {
    // Order of secp256k1.
    let n = alloy_primitives::U256::from_be_bytes([
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xba,
        0xae, 0xdc, 0xe6, 0xaf, 0x48, 0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36, 0x41, 0x41,
    ]);
    let mut bytes = *signature.as_bytes();
    let s = alloy_primitives::U256::from_be_slice(&bytes[32..64]);
    bytes[32..64].copy_from_slice(&(n - s).to_be_bytes::<32>());
    bytes[64] = 27 + 28 - bytes[64];
    Signature::from_bytes(&bytes).unwrap()
}

#[test]
fn a_signature_is_given_once_per_revision() {
    let p = pair();
    let key: SecretKey = p.world.nodes[0].key.clone();
    let sign = |start| {
        let document = Agreement { start, ..p.r.agreement.clone() };
        let signature = key.sign_digest(&document.digest(p.world.ledger.domain()));
        RentalRequest::Sign(Box::new(Signed { document, signature }))
    };
    let again = p.rental(p.renter(), sign(p.r.agreement.start));
    let RentalReply::Signed(answer) = again else { panic!("{again:?}") };
    assert_eq!(Some(answer.signature), p.r.host_signature, "the same digest gives the same answer");
    let other = p.rental(p.renter(), sign(p.r.agreement.start + 1));
    assert!(refused(other).contains("another agreement of this revision"));
}

#[test]
fn terms_and_money_that_do_not_fit_are_named() {
    let world = World::new(3);
    world.rent_out(1..3);
    let root = world.add(0, 300_000);
    let renter = world.market(0).renter().clone();
    let quote = |request| {
        let renter = renter.clone();
        world.on(0, async move { renter.quote(request, |_| {}).await })
    };
    for i in 1..3 {
        let host = world.market(i).host().clone();
        let settings = crate::host::HostSettings { min_term: 7 * DAY, ..host.settings() };
        world.on(i, async move { host.set(settings).await.unwrap() });
    }
    let short = quote(World::order(root, 1, None, Some(1))).unwrap_err().to_string();
    assert!(short.contains("0 found; of 2 known 2 that want a longer term"), "{short}");
    let mut cheap = World::order(root, 10, None, Some(1));
    cheap.max_price = Some(Btt::from_units(1));
    let dear = quote(cheap).unwrap_err().to_string();
    assert!(dear.contains("2 too dear"), "{dear}");
    let many = quote(World::order(root, 10, Some((2, 4)), None)).unwrap_err().to_string();
    assert!(many.contains("4 needed, 2 found") || many.contains("6 needed, 2 found"), "{many}");
    let few = quote(World::order(root, 10, None, None)).unwrap_err().to_string();
    assert!(few.contains("2 usable hosts are too few"), "{few}");
    let good = quote(World::order(root, 3000, None, Some(1)));
    let max = good.unwrap_err().to_string();
    assert!(max.contains("that want a shorter term"), "{max}");
}
