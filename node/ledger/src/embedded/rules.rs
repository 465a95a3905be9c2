//! The rules of the settlement operations: from a state and a call to changes and an effect.
//!
//! Pure: the state is read through [`Book`], time and seeds are passed in, and what would change is collected in
//! [`Changes`]. Nothing here writes. A call that fails leaves no changes but its nonce.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256};

use super::records::{Account, Armed, Channel, Effect, Failure, Stream};
use crate::btt::Btt;
use crate::typed::{Agreement, Call, ChannelTerms, ClaimLeaf, Document, Domain, Operation, Signed, Voucher};

/// Where the state before the call is read.
pub trait Book {
    /// Why it cannot be read.
    type Error;
    /// An account; an unknown one is empty.
    fn account(&self, address: &Address) -> Result<Account, Self::Error>;
    /// A channel, if it was ever locked.
    fn channel(&self, id: &B256) -> Result<Option<Channel>, Self::Error>;
    /// A stream; an unknown one is empty.
    fn stream(&self, channel: &B256, stream: &B256) -> Result<Stream, Self::Error>;
}

/// What a call changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Accounts after the call.
    pub accounts: BTreeMap<Address, Account>,
    /// Channels after the call.
    pub channels: BTreeMap<B256, Channel>,
    /// Streams after the call.
    pub streams: BTreeMap<(B256, B256), Stream>,
    /// The channel this call made, if any.
    pub created: Option<B256>,
}

/// Why a call stops: by the rules, or because the state cannot be read.
pub(crate) enum Halt<E> {
    /// The call fails and consumes its nonce.
    Failed(Failure),
    /// Nothing is known about the call; it can be tried again.
    Book(E),
}

impl<E> From<Failure> for Halt<E> {
    fn from(failure: Failure) -> Halt<E> {
        Halt::Failed(failure)
    }
}

/// Everything outside the state that a call's result depends on.
pub struct Surroundings<'a> {
    /// The settlement that documents must be signed for.
    pub domain: &'a Domain,
    /// Settlement time.
    pub now: u64,
    /// Seconds to answer a seed.
    pub answer_seconds: u64,
    /// Fresh random bytes of the operating system, used by `arm` alone.
    pub seed: B256,
}

/// Carries out a call whose signature and nonce are right. The outer error says that the state could not be read;
/// otherwise the changes (the consumed nonce always among them) and the effect or failure.
pub fn execute<B: Book>(
    book: &B,
    around: &Surroundings<'_>,
    call: &Call,
) -> Result<(Changes, Result<Effect, Failure>), B::Error> {
    let mut account = book.account(&call.from)?;
    // The nonce equals the number of calls made; 2^64 of them cannot happen.
    account.nonce = account.nonce.saturating_add(1);
    let mut run = Run { book, around, from: call.from, value: call.value, changes: Changes::default() };
    run.changes.accounts.insert(call.from, account);
    match run.call(call) {
        Ok(effect) => Ok((run.changes, Ok(effect))),
        Err(Halt::Failed(failure)) => {
            let accounts = BTreeMap::from([(call.from, account)]);
            Ok((Changes { accounts, ..Changes::default() }, Err(failure)))
        }
        Err(Halt::Book(error)) => Err(error),
    }
}

struct Run<'a, B: Book> {
    book: &'a B,
    around: &'a Surroundings<'a>,
    from: Address,
    value: Btt,
    changes: Changes,
}

type Step<B, T> = Result<T, Halt<<B as Book>::Error>>;

impl<B: Book> Run<'_, B> {
    fn call(&mut self, call: &Call) -> Step<B, Effect> {
        let now = self.around.now;
        if now > call.deadline {
            return Err(Failure::Expired { deadline: call.deadline, now }.into());
        }
        let operation =
            Operation::decode(&call.data.0).map_err(|error| Failure::Malformed(error.to_string()))?;
        let takes_value = matches!(operation, Operation::Transfer { .. } | Operation::Lock { .. });
        if !takes_value && !call.value.is_zero() {
            return Err(Failure::Value(operation.name().to_owned()).into());
        }
        match operation {
            Operation::Transfer { to } => self.transfer(to),
            Operation::Lock { renter, host, payee, window } => {
                self.lock(ChannelTerms { funder: self.from, renter, host, payee, window })
            }
            Operation::Decrease { channel, amount } => self.decrease(channel, amount),
            Operation::Finish { channel } => self.finish(channel),
            Operation::Release { channel, amount } => self.release(channel, amount),
            Operation::Redeem { voucher } => self.redeem(&voucher),
            Operation::Arm { agreement, epoch } => self.arm(&agreement, epoch),
            Operation::Claim { agreement, leaves } => self.claim(&agreement, &leaves),
        }
    }

    fn transfer(&mut self, to: Address) -> Step<B, Effect> {
        if self.value.is_zero() || to.is_zero() {
            return Err(Failure::Nothing.into());
        }
        self.debit(self.from, self.value)?;
        self.credit(to, self.value)?;
        Ok(Effect::Transferred { to, amount: self.value })
    }

    fn lock(&mut self, terms: ChannelTerms) -> Step<B, Effect> {
        let roles = [terms.renter, terms.host, terms.payee];
        if self.value.is_zero() || roles.iter().any(|role| role.is_zero()) {
            return Err(Failure::Nothing.into());
        }
        let id = terms.id();
        let found = self.book.channel(&id).map_err(Halt::Book)?;
        if found.is_none() {
            self.changes.created = Some(id);
        }
        let mut channel = found.unwrap_or(Channel { terms, locked: Btt::ZERO, pending: Btt::ZERO, due: 0 });
        self.debit(self.from, self.value)?;
        channel.locked = channel.locked.checked_add(self.value).ok_or(Failure::Overflow)?;
        self.changes.channels.insert(id, channel);
        Ok(Effect::Locked { channel: id, amount: self.value, locked: channel.locked })
    }

    fn decrease(&mut self, id: B256, amount: Btt) -> Step<B, Effect> {
        let mut channel = self.channel_of(&id, "funder", |terms| terms.funder)?;
        if amount > channel.locked {
            return Err(Failure::Lock { asked: amount, locked: channel.locked }.into());
        }
        channel.pending = amount;
        channel.due = self.around.now.saturating_add(u64::from(channel.terms.window));
        self.changes.channels.insert(id, channel);
        Ok(Effect::Decreasing { channel: id, amount, due: channel.due })
    }

    fn finish(&mut self, id: B256) -> Step<B, Effect> {
        let mut channel = self.channel_of(&id, "funder", |terms| terms.funder)?;
        let now = self.around.now;
        if channel.pending.is_zero() {
            return Err(Failure::NotPending.into());
        }
        if now < channel.due {
            return Err(Failure::NotDue { due: channel.due, now }.into());
        }
        // Vouchers redeemed within the window come first; only what they left goes back.
        let refunded = channel.pending.min(channel.locked);
        channel.locked = channel.locked.checked_sub(refunded).ok_or(Failure::Overflow)?;
        channel.pending = Btt::ZERO;
        channel.due = 0;
        self.credit(channel.terms.funder, refunded)?;
        self.changes.channels.insert(id, channel);
        Ok(Effect::Finished { channel: id, refunded })
    }

    fn release(&mut self, id: B256, amount: Btt) -> Step<B, Effect> {
        let mut channel = self.channel_of(&id, "host", |terms| terms.host)?;
        if amount.is_zero() {
            return Err(Failure::Nothing.into());
        }
        let rest = channel.locked.checked_sub(amount);
        channel.locked = rest.ok_or(Failure::Lock { asked: amount, locked: channel.locked })?;
        self.credit(channel.terms.funder, amount)?;
        self.changes.channels.insert(id, channel);
        Ok(Effect::Released { channel: id, refunded: amount })
    }

    fn redeem(&mut self, signed: &Signed<Voucher>) -> Step<B, Effect> {
        let voucher = &signed.document;
        let id = voucher.channel;
        let mut channel = self.channel(&id)?;
        if self.from != channel.terms.host && self.from != channel.terms.payee {
            return Err(Failure::Role("host or payee".to_owned()).into());
        }
        signed
            .verify(self.around.domain, channel.terms.renter)
            .map_err(|error| Failure::Document(format!("voucher refused: {error}")))?;
        let mut stream = self.book.stream(&id, &voucher.stream).map_err(Halt::Book)?;
        let paid_out = voucher.amount.saturating_sub(stream.paid).min(channel.locked);
        self.pay(&mut channel, &mut stream, paid_out)?;
        stream.settled = stream.settled.max(voucher.epochs);
        self.changes.channels.insert(id, channel);
        self.changes.streams.insert((id, voucher.stream), stream);
        let (paid, settled) = (stream.paid, stream.settled);
        Ok(Effect::Redeemed { channel: id, stream: voucher.stream, paid_out, paid, settled })
    }

    fn arm(&mut self, signed: &Signed<Agreement>, epoch: u32) -> Step<B, Effect> {
        let agreement = &signed.document;
        let channel = self.channel_of(&agreement.channel, "host", |terms| terms.host)?;
        let refuse = |error: String| Failure::Document(format!("agreement refused: {error}"));
        signed.verify(self.around.domain, channel.terms.renter).map_err(|error| refuse(error.to_string()))?;
        agreement.check(channel.terms.window).map_err(|error| refuse(error.to_string()))?;
        let mut stream = self.book.stream(&agreement.channel, &agreement.id).map_err(Halt::Book)?;
        let rule = |holds: bool, why: &str| {
            if holds { Ok(()) } else { Err(Failure::Epoch { epoch, why: why.to_owned() }) }
        };
        let now = self.around.now;
        let end = agreement.epoch_end(epoch);
        rule((agreement.first_epoch..agreement.end_epoch).contains(&epoch), "not in the agreement's term")?;
        rule(end <= now, "not over yet")?;
        rule(now < end.saturating_add(u64::from(agreement.claim_window)), "its claim window is over")?;
        rule(epoch >= stream.settled, "final already")?;
        rule(epoch >= stream.next, "armed before; an epoch has one seed")?;
        // `epoch` is below `end_epoch`, so `epoch + 1` fits.
        let span_start = (epoch + 1).saturating_sub(u32::from(agreement.claim_span));
        let from = stream.settled.max(stream.next).max(agreement.first_epoch).max(span_start);
        stream.next = epoch + 1;
        let armed = Armed {
            digest: agreement.digest(self.around.domain),
            epoch,
            from,
            seed: self.around.seed,
            deadline: now.saturating_add(self.around.answer_seconds),
        };
        stream.armed = Some(armed);
        self.changes.streams.insert((agreement.channel, agreement.id), stream);
        Ok(Effect::Armed { channel: agreement.channel, stream: agreement.id, armed })
    }

    fn claim(&mut self, agreement: &Agreement, leaves: &[ClaimLeaf]) -> Step<B, Effect> {
        let id = agreement.channel;
        let mut channel = self.channel_of(&id, "host", |terms| terms.host)?;
        let mut stream = self.book.stream(&id, &agreement.id).map_err(Halt::Book)?;
        let armed = stream.armed.ok_or(Failure::NotArmed)?;
        if armed.digest != agreement.digest(self.around.domain) {
            return Err(Failure::NotArmed.into());
        }
        let late = |why: &str| Failure::Epoch { epoch: armed.epoch, why: why.to_owned() };
        if self.around.now > armed.deadline {
            return Err(late("the time to answer its seed is over").into());
        }
        if armed.epoch < stream.settled {
            return Err(late("final already").into());
        }
        super::claim::verify(agreement, &armed, leaves).map_err(|error| Failure::Proof(error.to_string()))?;
        let epochs = armed.epoch + 1 - armed.from.max(stream.settled);
        let paid_out = agreement.epoch_price.checked_mul(u64::from(epochs)).ok_or(Failure::Overflow)?;
        if paid_out > channel.locked {
            return Err(Failure::Lock { asked: paid_out, locked: channel.locked }.into());
        }
        self.pay(&mut channel, &mut stream, paid_out)?;
        stream.settled = armed.epoch + 1;
        stream.armed = None;
        self.changes.channels.insert(id, channel);
        self.changes.streams.insert((id, agreement.id), stream);
        let (paid, settled) = (stream.paid, stream.settled);
        Ok(Effect::Claimed { channel: id, stream: agreement.id, paid_out, paid, settled })
    }

    /// Moves money from the lock to the payee and counts it on the stream.
    fn pay(&mut self, channel: &mut Channel, stream: &mut Stream, amount: Btt) -> Step<B, ()> {
        channel.locked = channel.locked.checked_sub(amount).ok_or(Failure::Overflow)?;
        stream.paid = stream.paid.checked_add(amount).ok_or(Failure::Overflow)?;
        self.credit(channel.terms.payee, amount)
    }

    fn channel(&self, id: &B256) -> Step<B, Channel> {
        self.book.channel(id).map_err(Halt::Book)?.ok_or(Halt::Failed(Failure::NoChannel(*id)))
    }

    fn channel_of(
        &self,
        id: &B256,
        role: &str,
        holder: impl Fn(&ChannelTerms) -> Address,
    ) -> Step<B, Channel> {
        let channel = self.channel(id)?;
        if holder(&channel.terms) == self.from {
            Ok(channel)
        } else {
            Err(Failure::Role(role.to_owned()).into())
        }
    }

    fn account(&self, address: &Address) -> Step<B, Account> {
        match self.changes.accounts.get(address) {
            Some(account) => Ok(*account),
            None => self.book.account(address).map_err(Halt::Book),
        }
    }

    fn debit(&mut self, address: Address, amount: Btt) -> Step<B, ()> {
        let mut account = self.account(&address)?;
        let short = Failure::Balance { needed: amount, balance: account.balance };
        account.balance = account.balance.checked_sub(amount).ok_or(short)?;
        self.changes.accounts.insert(address, account);
        Ok(())
    }

    fn credit(&mut self, address: Address, amount: Btt) -> Step<B, ()> {
        let mut account = self.account(&address)?;
        account.balance = account.balance.checked_add(amount).ok_or(Failure::Overflow)?;
        self.changes.accounts.insert(address, account);
        Ok(())
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
pub(crate) mod tests;
