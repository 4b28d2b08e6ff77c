package atisecrets

import (
	"context"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

type (
	Backend    = backend
	HiddenText = hiddenText
)

// NewWithClock is Factory with a clock that the test sets.
func NewWithClock(ctx context.Context, conf *logical.BackendConfig, now func() time.Time) (*Backend, error) {
	b, err := newBackend("v0.0.0-test", now)
	if err != nil {
		return nil, err
	}
	return b, b.Setup(ctx, conf)
}
