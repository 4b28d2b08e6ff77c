package atisecrets

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// readEntry decodes a storage entry, if there is one, and refuses one that a
// newer version of the plugin wrote.
func readEntry(ctx context.Context, s logical.Storage, path string, out any, version func() int) error {
	entry, err := s.Get(ctx, path)
	if err != nil || entry == nil {
		return err
	}
	if err := entry.DecodeJSON(out); err != nil {
		return fmt.Errorf("decode the storage entry: %w", err)
	}
	if v := version(); v > storageVersion {
		return fmt.Errorf("the storage entry has version %d, and this plugin knows up to %d: a newer version of the plugin wrote it", v, storageVersion)
	}
	return nil
}

// forWrite is the context of a write to storage. That is waited for once it has begun,
// also when its request is given up meanwhile: it may be carried out all the same, and
// a cache that is filled in between would keep what was there before. It is bounded,
// beyond the 90 s that Vault gives a request.
func forWrite(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
}

func put(ctx context.Context, s logical.Storage, entry *logical.StorageEntry) error {
	ctx, cancel := forWrite(ctx)
	defer cancel()
	return s.Put(ctx, entry)
}

func remove(ctx context.Context, s logical.Storage, path string) error {
	ctx, cancel := forWrite(ctx)
	defer cancel()
	return s.Delete(ctx, path)
}
