//! Errors as callers see them (management.md §17.5).

use std::fmt;

use hyper::StatusCode;
use platform::logging::chain;
use uuid::Uuid;

use crate::configuration::BadValue;
use crate::store::StoreError;

/// What kind of error: the API's `errorcode`, which is the HTTP status, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    BadRequest,
    NotAuthenticated,
    MethodNotAllowed,
    TooManyRequests,
    Malformed,
    /// Missing, invalid or not found.
    Parameter,
    Unsupported,
    Unavailable,
    Internal,
    /// Account or permission.
    Permission,
    ResourceLimit,
    InsufficientCapacity,
    ResourceUnavailable,
    ResourceAllocation,
    ResourceInUse,
    NetworkRuleConflict,
}

/// A sentence about the caller's input, and its code.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text}")]
pub struct ApiError {
    /// Which kind.
    pub code: Code,
    /// What is wrong and what to do. Callers see it: never a secret, never a path of this machine.
    pub text: String,
}

impl ApiError {
    /// An error of this kind.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { code, text }
    }

    /// Something is wrong with a parameter.
    pub fn parameter(text: impl Into<String>) -> Self {
        Self::new(Code::Parameter, text)
    }

    /// The sentence by which clients know that something does not exist (the Go SDK compares it).
    pub fn no_such(parameter: &str, value: impl fmt::Display) -> Self {
        Self::parameter(format!(
            "Invalid parameter {parameter} value={value} due to incorrect long value format, or entity does not exist"
        ))
    }

    /// Likewise, of a UUID that is well-formed.
    pub fn no_such_id(parameter: &str, uuid: Uuid) -> Self {
        Self::no_such(parameter, uuid)
    }

    /// The caller must prove who he is. Says nothing about what was wrong.
    pub fn not_authenticated() -> Self {
        Self::new(
            Code::NotAuthenticated,
            "unable to verify user credentials and/or request signature",
        )
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = %chain(&error), "A command failed in the database");
        Self::new(Code::Internal, "the database failed; the reason is in the server's log")
    }
}

impl From<BadValue> for ApiError {
    fn from(error: BadValue) -> Self {
        match error {
            BadValue::Store(error) => error.into(),
            BadValue::Invalid { .. } => Self::parameter(error.to_string()),
        }
    }
}

impl Code {
    /// On the wire.
    pub fn number(self) -> i64 {
        self.numbers().0.into()
    }

    /// `cserrorcode`: CloudStack's number for the exception it would have thrown.
    pub fn exception(self) -> i64 {
        self.numbers().1
    }

    /// Codes above 511 are CloudStack's own.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.numbers().0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn numbers(self) -> (u16, i64) {
        match self {
            Self::BadRequest => (400, 9999),
            Self::NotAuthenticated => (401, 9999),
            Self::MethodNotAllowed => (405, 9999),
            Self::TooManyRequests => (429, 9999),
            Self::Malformed => (430, 9999),
            Self::Parameter => (431, 4350),
            Self::Unsupported => (432, 9999),
            Self::Unavailable => (503, 9999),
            Self::Internal => (530, 4250),
            Self::Permission => (531, 4365),
            Self::ResourceLimit => (532, 4370),
            Self::InsufficientCapacity => (533, 4325),
            Self::ResourceUnavailable => (534, 4380),
            Self::ResourceAllocation => (535, 4370),
            Self::ResourceInUse => (536, 4375),
            Self::NetworkRuleConflict => (537, 4360),
        }
    }
}
