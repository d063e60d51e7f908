//! Separation of duties. Asked in code before policy is, so that no policy can permit it.

use daypass_protocol::ids::PersonId;

/// Nobody answers their own request.
pub fn approver_is_requester(approver: &PersonId, requester: &PersonId) -> bool {
    approver == requester
}

/// Nobody reviews their own session.
pub fn reviewer_is_operator(reviewer: &PersonId, operator: &PersonId) -> bool {
    reviewer == operator
}
