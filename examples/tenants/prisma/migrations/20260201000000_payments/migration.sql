CREATE TABLE "Payment" ("id" SERIAL PRIMARY KEY, "reference" TEXT NOT NULL UNIQUE, "cents" INTEGER NOT NULL, "bookingId" INTEGER NOT NULL REFERENCES "Booking" ("id"));
CREATE TABLE "Refund" ("id" SERIAL PRIMARY KEY, "cents" INTEGER NOT NULL, "paymentId" INTEGER NOT NULL REFERENCES "Payment" ("id"));
CREATE TABLE "AuditLog" ("id" SERIAL PRIMARY KEY, "action" TEXT NOT NULL, "subject" TEXT NOT NULL, "tenantId" INTEGER NOT NULL REFERENCES "Tenant" ("id"),
    "memberId" INTEGER REFERENCES "Member" ("id"));
