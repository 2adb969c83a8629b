// For comparison only (SHARED=1): one database for all workers, cleaned by hand as everybody does it.
import { beforeEach } from 'vitest';
import { admin } from '../src/clients';

beforeEach(async () => {
  await admin.bookingAddOn.deleteMany();
  await admin.booking.deleteMany();
  await admin.addOn.deleteMany();
  await admin.package.deleteMany();
  await admin.passwordReset.deleteMany();
  await admin.customer.deleteMany();
  await admin.webhookEvent.deleteMany();
});
