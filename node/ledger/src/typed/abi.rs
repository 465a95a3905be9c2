//! The same documents and operations as Solidity sees them: typehashes, struct hashes and calldata come from
//! here, so that a vault contract and this crate cannot differ.

#![allow(
    missing_docs,
    reason = "generated from the Solidity below; the documented types are their counterparts"
)]

alloy_sol_types::sol! {
    struct Offer {
        address host;
        address payee;
        uint128 price;
        uint128 setupPrice;
        uint64 minTerm;
        uint64 maxTerm;
        uint64 maxSize;
        uint64 free;
        uint32 collateral;
        uint32 window;
        uint64 expires;
    }

    struct Agreement {
        bytes32 channel;
        bytes32 id;
        uint32 revision;
        bytes32 offer;
        bytes32 blocks;
        bytes32 root;
        uint64 leaves;
        uint64 size;
        uint64 start;
        uint32 epochLength;
        uint32 firstEpoch;
        uint32 endEpoch;
        uint128 epochPrice;
        uint128 setupPrice;
        uint128 collateral;
        uint32 claimWindow;
        uint16 auditLeaves;
        uint16 claimLeaves;
        uint16 claimSpan;
    }

    struct Voucher {
        bytes32 channel;
        bytes32 stream;
        uint128 amount;
        uint32 epochs;
    }

    struct Call {
        address from;
        uint64 nonce;
        uint64 deadline;
        uint128 value;
        bytes data;
    }

    /// What the operator of an embedded ledger signs with every reply.
    struct Reply {
        bytes32 request;
        bytes32 body;
        uint64 seq;
        bytes32 head;
        uint64 time;
    }

    /// One challenged leaf and its path, bottom up.
    struct Leaf {
        bytes data;
        bytes32[] path;
    }

    function transfer(address to);
    function lock(address renter, address host, address payee, uint32 window);
    function decrease(bytes32 channel, uint128 amount);
    function finish(bytes32 channel);
    function release(bytes32 channel, uint128 amount);
    function redeem(Voucher voucher, bytes sig);
    function arm(Agreement agreement, bytes renterSig, uint32 e);
    function claim(Agreement agreement, Leaf[] leaves);
}
